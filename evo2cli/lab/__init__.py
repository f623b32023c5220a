"""The architecture laboratory: layouts trained under identical conditions; what they learn and cost, side by side."""
