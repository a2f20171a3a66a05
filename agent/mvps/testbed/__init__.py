# SPDX-License-Identifier: Apache-2.0
"""The closed loop of IC9.4: replicas behind a load balancer on this kernel, routes that are really withdrawn, and what
the agent, the AI vantage and the broker say of it."""
