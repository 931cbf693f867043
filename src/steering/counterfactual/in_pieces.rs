//! Losses predicted from what a model answers to pieces of a point.

use burn::tensor::Tensor;

use super::gain::mean;
use super::probe::{Probe, Progress};
use crate::denoiser::{Condition, Denoiser, frozen_output};
use crate::error::Result;
use crate::evaluate::{parts, row_losses};
use crate::host::{evenly, read_f32, select_rows, squared_norms, to_f32};
use crate::pieces::Pieces;

/// The most control points that are shown in pieces.
const CONTROLS: usize = 32;
/// A forgotten point is shown in pieces under one of so many of its noises.
const ONE_OF: usize = 8;

/// A model that is shown pieces of points inside control points. It does not recognise what it
/// memorised, so its error there is one of a model that never saw the point.
pub(super) struct InPieces<'a, const D: usize, M: Denoiser<D>> {
    probe: &'a Probe<'a, D, M>,
    pieces: Pieces,
    controls: Tensor<D>,
    forgotten: Tensor<D>,
    /// The control points shown.
    rows: Vec<usize>,
    /// Noises for each forgotten point.
    noises: usize,
}

impl<'a, const D: usize, M: Denoiser<D>> InPieces<'a, D, M> {
    /// `None` if pieces are not wanted, the points have no axis to divide, or there is no second
    /// control point to show the pieces of the first one in.
    pub(super) fn new(probe: &'a Probe<'a, D, M>) -> Option<Self> {
        let (data, config) = (&probe.data, probe.config);
        let shape = data.controls.dims();
        let pieces = Pieces::of(&shape[1..]).filter(|_| config.pieces && shape[0] > 1)?;
        let on_device = |points: &Tensor<D>| to_f32(points.clone().inner());
        Some(Self {
            pieces,
            controls: on_device(data.controls),
            forgotten: on_device(data.forgotten),
            rows: evenly((0..shape[0]).collect(), CONTROLS),
            noises: config.noises.div_ceil(ONE_OF),
            probe,
        })
    }

    /// Rows that run through the model for one timestep.
    pub(super) fn rows(&self) -> usize {
        let forgotten = self.forgotten.dims()[0] * self.noises;
        self.pieces.count() * (self.rows.len() + forgotten)
    }

    /// The predicted losses of the forgotten points, by timestep of the grid, where the model does
    /// better on control points than the ideal denoiser.
    pub(super) fn over_grid(
        &self,
        gains: &[f64],
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Option<Vec<f64>>>> {
        let at = |(index, &gain): (usize, &f64)| {
            if gain <= 1.0 {
                return self.losses(index, progress).map(Some);
            }
            progress.add_single(self.rows());
            Ok(None)
        };
        gains.iter().enumerate().map(at).collect()
    }

    /// The predicted losses at a timestep: the mean squares of the errors in pieces, times the
    /// ratio of loss to such an error on control points.
    fn losses(&self, index: usize, progress: &mut Progress<'_>) -> Result<Vec<f64>> {
        let count = self.controls.dims()[0];
        let (mut of_model, mut of_pieces) = (Vec::new(), Vec::new());
        for (first, rows) in parts(self.rows.len(), 1, self.rows_at_a_time()) {
            let rows: Vec<usize> = rows.iter().map(|&row| self.rows[row]).collect();
            of_model.extend(self.model_losses(index, &rows, first)?);
            // Never the point itself.
            let around = |row: usize, piece: usize| (rows[row] + 1 + piece % (count - 1)) % count;
            let part = (&self.controls, rows.as_slice(), first);
            of_pieces.extend(self.squares(index, part, around, progress)?);
        }
        let gain = mean(&of_model) / mean(&of_pieces);

        let points = self.forgotten.dims()[0];
        let mut losses = vec![0.0; points];
        for (first, rows) in parts(points, self.noises, self.rows_at_a_time()) {
            let pieces = self.pieces.count();
            let around = |row: usize, piece: usize| ((first + row) * pieces + piece) % count;
            let part = (&self.forgotten, rows.as_slice(), first);
            let squares = self.squares(index, part, around, progress)?;
            for (&row, square) in rows.iter().zip(squares) {
                losses[row] += gain * square / self.noises as f64;
            }
        }
        Ok(losses)
    }

    fn rows_at_a_time(&self) -> usize {
        let at_a_time = self.probe.config.micro_batch_size;
        (at_a_time / self.pieces.count()).max(1)
    }

    /// The model's loss on some control points.
    fn model_losses(&self, index: usize, rows: &[usize], first: usize) -> Result<Vec<f64>> {
        let clean = select_rows(&self.controls, rows);
        let noise = self.probe.noise(clean.dims(), first);
        let scales = self.probe.scales.repeat(index, rows.len());
        let condition = self.probe.data.control_condition.take_rows(rows);
        let (model, timestep) = (&self.probe.model, self.probe.timesteps[index]);
        on_host(row_losses(
            model, timestep, &scales, &clean, &noise, &condition,
        )?)
    }

    /// The mean square of the error in pieces of some rows' points; `around`: the control point
    /// that surrounds a piece of a row.
    fn squares(
        &self,
        index: usize,
        (points, rows, first): (&Tensor<D>, &[usize], usize),
        around: impl Fn(usize, usize) -> usize,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<f64>> {
        let Probe {
            model,
            config,
            data,
            timesteps,
            ..
        } = self.probe;
        let clean = select_rows(points, rows);
        let noise = self.probe.noise(clean.dims(), first);
        let scales = self.probe.scales.repeat(index, rows.len());
        let noisy = scales.noisy(&clean, &noise);
        let others = (&self.controls, around);
        let ask = |shown, surrounding: &[usize]| {
            progress.add_single(surrounding.len());
            let condition = data.control_condition.take_rows(surrounding);
            let timesteps = vec![timesteps[index]; surrounding.len()];
            frozen_output(
                model,
                shown,
                &timesteps,
                &condition,
                config.micro_batch_size,
            )
        };
        let pieces = &self.pieces;
        let answers = pieces.answers((&noisy, &clean), &scales.signal, others, ask)?;
        let error = answers - scales.target(model.prediction_type(), &clean, &noise);
        let elements: usize = error.dims()[1..].iter().product();
        on_host(squared_norms(error) / elements as f64)
    }
}

fn on_host(losses: Tensor<1>) -> Result<Vec<f64>> {
    let losses = read_f32(losses, "the model's losses")?;
    Ok(losses.into_iter().map(f64::from).collect())
}
