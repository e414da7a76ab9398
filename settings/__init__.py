"""What users set: files, variables and flags become typed values, or errors that say where."""
