"""The scale-wise family: VAR, its Markovian form SDD, and SRDD's resampling."""
