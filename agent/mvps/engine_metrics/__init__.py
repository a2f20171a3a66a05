# SPDX-License-Identifier: Apache-2.0
"""What serving engines export of themselves, in Prometheus's text format: vLLM's and SGLang's own metrics."""
