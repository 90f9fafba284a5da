"""The policy node without its transport: what it does with messages, when a cycle runs, and what it publishes.

Plain DDS and ROS 2 are each a thin layer around :class:`m2distill_policy.node.loop.PolicyLoop`, so both behave alike.
The package needs the same libraries as :mod:`m2distill_policy.runtime`. Import from its modules; the package itself
exports nothing.
"""
