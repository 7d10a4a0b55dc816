"""What every part of the platform stands on: files, run directories, storage, Ray."""
