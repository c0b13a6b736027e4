"""The reproduction study: the paper's tables and figures at small scale, on synthetic scenes."""
