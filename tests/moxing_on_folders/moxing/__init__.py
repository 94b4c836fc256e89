"""Stands in for moxing, the package of ModelArts: obs://BUCKET/NAME is the file BUCKET/NAME in the folder $MOXING_ROOT.

For the tests alone. Only what this project calls is here, with the signatures and the meaning that the documentation of
MoXing gives.
"""

from . import file as file
