"""What happens between sites. Read plan, tensors, aggregation, training, agent, flower."""
