"""What a machine can do with a bundle: `doctor` says what is usable, `verify` accepts it, `bench` measures it."""
