"""The paper's experiment (Sooksatra & Rivas, Mathematics 2024): data, models, training, attacks, evaluation."""
