"""Parts of calibration: runs in lockstep (`lockstep`), sampled rows (`rows`), closed-form fits (`fit`), groups (`reconstruct`)."""
