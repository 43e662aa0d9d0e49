"""The demo: what `binarize demo` trains, so that there is a trained model to convert."""
