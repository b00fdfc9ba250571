"""Everything about the package is in setup.cfg; this file lets pip find it."""

from setuptools import setup

setup()
