//! The rule graph: parameters, conditions, joint points, analysed.
