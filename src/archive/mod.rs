//! Tar streams and compression: reads the hostile, writes the deterministic.
