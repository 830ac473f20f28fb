"""Giving a candidate to a share of people first: assignment, sequential tests, guardrails, and what happens next.

All of it is pure. What is counted and what is served lives in `stores/sql/rollouts.py`; the loop in the services.
"""
