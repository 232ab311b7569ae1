"""Tests of the doctor's checks; its whole round is in test_doctor.py."""
