"""Parts of calibration: runs in lockstep, sampled rows, closed-form fits, reconstruction of groups."""
