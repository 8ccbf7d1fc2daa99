"""The generated data set of scripts/demo.sh."""
