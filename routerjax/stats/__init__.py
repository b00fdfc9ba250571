"""Statistics of scores and outcomes that know nothing of stores, trunks or routers."""
