"""Turns a downloaded body into the JPEG that is stored: the picture that browsers show, in sRGB, upright, resized."""
