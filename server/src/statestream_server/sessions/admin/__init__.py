"""What is done about sessions beside their steps: forks, snapshots, restores, lists."""
