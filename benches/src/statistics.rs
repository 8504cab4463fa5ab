//! Medians and quartiles.

/// Returns the middle one of the values, which must not be empty.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 2)
}

/// Returns the first quartile of the values, which must not be empty. Other load on the machine only adds to a CPU
/// time, so the lower values are the better estimate.
pub fn first_quartile(values: &[f64]) -> f64 {
    quantile(values, 1)
}

fn quantile(values: &[f64], quarters: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) * quarters / 4]
}
