# SPDX-License-Identifier: Apache-2.0
"""What runs inside a serving engine's process: the controller on the engine's own logits, and the link to the agent.

``decoding`` is for any engine; ``huggingface`` and ``vllm`` fit it to the interfaces of two, ``tensors`` is where
accelerators are met, ``agent_link`` sends audit packets to the host's agent and hears how hard to push,
``text_spread`` measures how alike a tenant's answers are, and ``settings`` is the file that an engine is started with.
``trailer`` needs none of these: it tells a server's clients how coherent its replicas are.
Nothing here is an entry point: whoever wants it names it.
"""
