//! Least squares with a ridge, of few columns and many rows.

/// The sums that a regression of `y` on some columns is made from.
#[derive(Debug, Clone)]
pub(super) struct Regression {
    /// `Σ x xᵀ`.
    products: Vec<Vec<f64>>,
    /// `Σ x y`.
    along: Vec<f64>,
    /// `Σ y²`.
    power: f64,
    rows: usize,
}

/// The coefficients of a regression without an intercept.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fitted {
    pub(super) coefficients: Vec<f64>,
    /// `1 − Σ (y − xᵀc)² / Σ y²`.
    pub(super) r_squared: f64,
}

impl Regression {
    pub(super) fn new(columns: usize) -> Self {
        Self {
            products: vec![vec![0.0; columns]; columns],
            along: vec![0.0; columns],
            power: 0.0,
            rows: 0,
        }
    }

    /// Adds rows: `y`, and each column's values.
    pub(super) fn add(&mut self, y: &[f32], columns: &[Vec<f32>]) {
        for (first, own) in columns.iter().enumerate() {
            self.along[first] += dot(own, y);
            for (second, other) in columns.iter().enumerate().skip(first) {
                let product = dot(own, other);
                self.products[first][second] += product;
                if second != first {
                    self.products[second][first] += product;
                }
            }
        }
        self.power += dot(y, y);
        self.rows += y.len();
    }

    /// `(Σ x xᵀ + ridge · rows · 1) c = Σ x y`.
    pub(super) fn fit(&self, ridge: f64) -> Fitted {
        let mut matrix = self.products.clone();
        for (index, row) in matrix.iter_mut().enumerate() {
            row[index] += ridge * self.rows as f64;
        }
        let coefficients = solve(matrix, vec![self.along.clone()]).concat();
        let explained: f64 = (coefficients.iter().zip(&self.along))
            .map(|(coefficient, along)| 2.0 * coefficient * along)
            .sum();
        let quadratic: f64 = (self.products.iter().zip(&coefficients))
            .map(|(row, own)| own * inner(row, &coefficients))
            .sum();
        let r_squared = match self.power > 0.0 {
            true => (explained - quadratic) / self.power,
            false => 1.0,
        };
        Fitted {
            coefficients,
            r_squared,
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b);
    pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Solves `matrix · x = right` for a positive definite matrix and each right side, by Gaussian
/// elimination.
pub(super) fn solve(mut matrix: Vec<Vec<f64>>, mut rights: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let count = matrix.len();
    for pivot in 0..count {
        let (above, below) = matrix.split_at_mut(pivot + 1);
        let pivot_row = &above[pivot][pivot..];
        for (offset, row) in below.iter_mut().enumerate() {
            let factor = row[pivot] / pivot_row[0];
            for (value, above) in row[pivot..].iter_mut().zip(pivot_row) {
                *value -= factor * above;
            }
            for right in &mut rights {
                right[pivot + 1 + offset] -= factor * right[pivot];
            }
        }
    }
    for right in &mut rights {
        for row in (0..count).rev() {
            let known = inner(&matrix[row][row + 1..], &right[row + 1..]);
            right[row] = (right[row] - known) / matrix[row][row];
        }
    }
    rights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_combination_is_found() {
        let columns = [
            vec![1.0f32, 0.0, 2.0, -1.0, 0.5],
            vec![0.5, 1.0, -1.0, 0.0, 2.0],
            vec![-1.0, 0.25, 0.0, 3.0, 1.0],
        ];
        let wanted = [0.75, -0.5, 0.25];
        let y: Vec<f32> = (0..5)
            .map(|row| {
                (0..3)
                    .map(|column| wanted[column] * columns[column][row])
                    .sum()
            })
            .collect();
        let mut regression = Regression::new(3);
        for rows in [0..2, 2..5] {
            let part = |values: &Vec<f32>| values[rows.clone()].to_vec();
            regression.add(&y[rows.clone()], &columns.each_ref().map(part));
        }
        let fitted = regression.fit(1e-12);
        assert!((fitted.r_squared - 1.0).abs() < 1e-9);
        for (found, wanted) in fitted.coefficients.iter().zip(wanted) {
            assert!((found - wanted as f64).abs() < 1e-6, "{fitted:?}");
        }
    }

    /// Of `y = x + e` with `e` orthogonal to `x`; and two equal columns share the coefficient.
    #[test]
    fn what_is_not_explained_lowers_r_squared_and_the_ridge_shares_among_equals() {
        let x = vec![1.0f32, 1.0, -1.0, -1.0];
        let y = [1.5f32, 0.5, -0.5, -1.5];
        let mut regression = Regression::new(2);
        regression.add(&y, &[x.clone(), x]);
        let fitted = regression.fit(1e-6);
        assert!((fitted.r_squared - 0.8).abs() < 1e-5, "{fitted:?}");
        for coefficient in fitted.coefficients {
            assert!((coefficient - 0.5).abs() < 1e-4, "{coefficient}");
        }
    }
}
