//! An upper limit for the predicted loss of a point.

use super::gain::mean;
use super::groups::members;
use super::ideal::{Flat, flat};
use super::linear::LinearDenoisers;
use super::probe::{LossMoments, Probe};
use crate::data::Points;
use crate::denoiser::Denoiser;
use crate::error::Result;
use crate::host::read_f32;

/// An upper limit for the predicted loss of each point.
///
/// It is the loss of the best linear denoiser of the retained data, and in addition what the model
/// loses more than that denoiser on control points. It is needed for a point far from all data,
/// about which its nearest neighbours say nothing.
pub(super) struct Caps {
    /// By point and timestep.
    caps: Vec<Vec<f64>>,
    /// By point, the control points that represent it.
    members: Vec<Vec<usize>>,
}

impl Caps {
    pub(super) fn new<const D: usize, M: Denoiser<D>>(
        probe: &Probe<'_, D, M>,
        retained: &Flat<'_, D>,
        control_losses: &[Vec<LossMoments>],
    ) -> Result<Self> {
        let data = &probe.data;
        let elements = retained.dims()[1];
        let points = read_f32(flat(data.forgotten), "the forgotten points")?;
        let controls = read_f32(flat(data.controls), "the control points")?;
        let control = |index: usize| &controls[index * elements..][..elements];
        let groups = data.groups.as_ref();
        let wanted = groups.map_or(&[][..], |groups| groups.forgotten);
        let keys = groups.map(|groups| groups.retained);
        let denoisers = LinearDenoisers::new(retained, keys, wanted, &data.controls.device())?;
        let ratios = probe.scales.ratios();
        let (mut caps, mut all_members) = (Vec::new(), Vec::new());
        for (index, point) in points.chunks(elements).enumerate() {
            let group = groups.map(|groups| groups.forgotten[index]);
            let linear = denoisers.of(group);
            let keys = groups.map(|groups| groups.controls);
            let members = members(keys, group, data.controls.dims()[0]);
            let cap = |(at, &ratio): (usize, &f64)| {
                let linear_loss = |point| probe.squared_slope(at) * linear.error(point, ratio);
                let above = members
                    .iter()
                    .map(|&member| control_losses[at][member].mean - linear_loss(control(member)));
                linear_loss(point) + mean(&above.collect::<Vec<_>>()).max(0.0)
            };
            caps.push(ratios.iter().enumerate().map(cap).collect());
            all_members.push(members);
        }
        Ok(Self {
            caps,
            members: all_members,
        })
    }

    pub(super) fn members(&self, point: usize) -> &[usize] {
        &self.members[point]
    }

    pub(super) fn at(&self, point: usize, index: usize) -> f64 {
        self.caps[point][index]
    }
}
