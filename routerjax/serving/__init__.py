"""serving: a router behind HTTP, beside a proxy or as one."""
