"""Files of the published VAR, MVAR and HMAR models, read and written."""
