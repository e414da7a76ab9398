"""The live page's data and words, and the verdicts behind it."""
