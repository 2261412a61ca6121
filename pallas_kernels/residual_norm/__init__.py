"""LayerNorm or RMSNorm of a sum of a residual and what dropout leaves."""
