# SPDX-License-Identifier: Apache-2.0
"""The AI vantage: asks the replicas of a language model the same questions and reports how coherent they are.

Prompts, answers and embeddings stay in this process; only scalars leave it (001 sec. 28).
"""
