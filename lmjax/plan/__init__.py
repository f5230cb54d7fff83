"""What a run needs, before anyone pays for it: counts, the compiler's own figures, a roofline, remedies."""
