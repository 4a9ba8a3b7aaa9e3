"""Measurements that take minutes, each run beside what it is compared with. Results stand in docs."""
