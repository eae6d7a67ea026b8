"""The paper's claim end to end: subnets 30 to 70 % smaller that outperform the pretrained model."""
