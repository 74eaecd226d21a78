"""The wire contract: messages and stubs, generated from protos/statestream/v1."""
