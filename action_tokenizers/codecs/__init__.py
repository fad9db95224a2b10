"""Pure, stateless, invertible maths that the families share."""
