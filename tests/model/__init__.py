"""A small model of the session protocol, and an exhaustive search of what can happen in it.

The chapter in parts:

- `rules`     the rules of the protocol, one switch each, and the faults that a search may use
- `settings`  which searches are made
- `state`     what there is: a client, a wire, two owners, a store
- `store`     what the store decides
- `claims`    how an owner comes to have a session
- `owner`     what an owner does with frames, queue and store
- `client`    what the client does with its inputs and with answers
- `world`     every event that is possible in a state
- `explorer`  the search: breadth first, so that the first violation comes with its shortest schedule
- `words`     a schedule as sentences

`python -m tests.model` searches with all rules; `python -m tests.model --explain` takes each rule away and
tells what goes wrong. docs/model.md has the results.
"""
