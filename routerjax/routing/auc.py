from routerjax.probes.auc import *  # noqa  (moved; the lead removes this file)
