"""Ray Train, Tune and Serve around the science in ``srdd``, and its command line."""
