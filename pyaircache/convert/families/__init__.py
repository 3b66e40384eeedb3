"""Families that llama.cpp's converter lacks: each registers its classes with the converter when it is imported."""
