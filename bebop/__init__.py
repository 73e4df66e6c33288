"""Bebop: reinforcement learning whose rollouts are accelerated by a frozen multi-token-prediction head."""

__version__ = "0.1.0"
