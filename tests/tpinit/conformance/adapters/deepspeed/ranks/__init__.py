"""What runs under the implementation's own interpreter: a fork server, and the ranks that it forks.

Nothing here imports the rest of tpinit: the interpreter that has DeepSpeed need not have us. The kit's side is the
package above; between the two go JSON lines.
"""
