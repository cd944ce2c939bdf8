"""The code that runs under the implementation's own interpreter: a fork server and the ranks that it forks.

It needs no installed tpinit: the client (`host`) puts the kit's folder on the path of that interpreter. The modules
here import no other part of the kit; their parent packages, which Python imports too, need the standard library only.
Client and server exchange JSON lines.
"""
