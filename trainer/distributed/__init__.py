"""Several processes on one host that train one run, one GPU each.

Process 0 is the leader: it alone reads options and control.json, writes, validates and decides. The others follow its
orders, which are: make the next optimizer step, hand over what you hold, end. A step deals the micro-batches of the
effective batch to the processes and sums their gradients, so that it is the step that one process would have made.

    membership.py   who belongs together: started by the leader itself, or by torchrun
    peers.py        the processes that the leader starts, and what becomes of it when one fails
    team.py         what processes tell each other beside gradients: orders, stops, sums
    following.py    what a process does that is not the leader
    gradients.py    sums of gradients over processes, while the last backward pass still runs
    sharding.py     fsdp: weights divided among the processes, and updates made by their owners
    sending.py      nested containers of tensors from one process to another
"""
