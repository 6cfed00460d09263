//! The layer on the rows of a step of the chains, and back. Mirrors `layer` and `attention` of the processor's code.

use super::launches::{NULL, Normed, Rows};
use super::memory::{Keys, Step};
use super::pass::{Done, Pass};
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::kernels::training::{Swiglu, SwigluBackward};
use crate::backend::cuda::kernels::{Address, Flash, FlashPass, flash};
use crate::backend::training::parameters::{Linear, Slot};

/// Queries or keys of some rows.
struct HeadsOf<'a> {
    linear: &'a Linear,
    norm: Option<&'a Slot>,
    heads: usize,
    /// Before the norm.
    raw: Address,
    factors: Address,
    x: Address,
}

impl<D: Driver> Pass<'_, D> {
    fn queries_of(&self, step: &Step) -> HeadsOf<'_> {
        let (layout, heads) = (self.layout, self.geometry.heads);
        let (raw, factors, x) = (step.raw_q, step.q_factors, step.q);
        HeadsOf { linear: &layout.q, norm: layout.q_norm.as_ref(), heads, raw, factors, x }
    }

    fn keys_of(&self, keys: &Keys) -> HeadsOf<'_> {
        let (layout, heads) = (self.layout, self.geometry.kv_heads);
        let &Keys { raw, factors, k: x, .. } = keys;
        HeadsOf { linear: &layout.k, norm: layout.k_norm.as_ref(), heads, raw, factors, x }
    }

    /// Projected, normalised per head where the model does that, rotated.
    fn heads(&self, of: &HeadsOf<'_>, rows: Rows, normed: Address) -> Done {
        let projected = if of.norm.is_some() { of.raw } else { of.x };
        self.project(of.linear, rows.count, normed, projected, NULL)?;
        if let Some(norm) = of.norm {
            let heads = Normed { x: of.raw, index: NULL, rows: rows.count * of.heads, factors: of.factors };
            self.norm(heads, self.values(norm), norm.range.len(), of.x)?;
        }
        self.rotate(rows, of.x, of.heads, false)
    }

    /// Turns the gradient of queries or keys into that of their projection, and adds its parameters'; then makes (`beta` 0)
    /// or adds (1) that of what they read.
    fn heads_backward(
        &self,
        of: &HeadsOf<'_>,
        rows: Rows,
        normed: Address,
        dx: Address,
        dnormed: Address,
        beta: f32,
    ) -> Done {
        self.rotate(rows, dx, of.heads, true)?;
        if let Some(norm) = of.norm {
            let heads = Normed { x: of.raw, index: NULL, rows: rows.count * of.heads, factors: of.factors };
            self.norm_backward(heads, norm, dx, dx, false)?;
        }
        self.project_backward(of.linear, rows.count, normed, dx, dnormed, beta)
    }

    /// Keys and values of rows.
    pub fn keys(&self, rows: Rows, normed: Address, keys: &Keys) -> Done {
        self.heads(&self.keys_of(keys), rows, normed)?;
        self.project(&self.layout.v, rows.count, normed, keys.v, NULL)
    }

    /// Adds the gradients of the projections to keys and values, then makes (`beta` 0) or adds (1) that of what they read.
    pub fn keys_backward(&self, rows: Rows, normed: Address, keys: &Keys, dnormed: Address, beta: f32) -> Done {
        self.heads_backward(&self.keys_of(keys), rows, normed, keys.dk, dnormed, beta)?;
        self.project_backward(&self.layout.v, rows.count, normed, keys.dv, dnormed, 1.0)
    }

    /// The layer on the rows of a step, whose inputs and keys are there.
    pub fn layer(&self, number: usize) -> Done {
        let (step, layout, rows) = (&self.work.steps[number], self.layout, self.chains(number));
        let count = rows.count;
        self.heads(&self.queries_of(step), rows, step.inputs.normed.factor)?;
        self.attend(FlashPass::Forward, number, false)?;
        self.narrow(step.attended, count * self.geometry.q_size())?;
        self.project(&layout.o, count, step.attended.factor, step.middle.x, step.inputs.x)?;
        self.norm_stream(&step.middle, count, &layout.post_norm)?;
        let normed = step.middle.normed.factor;
        self.project(&layout.gate, count, normed, step.gate, NULL)?;
        self.project(&layout.up, count, normed, step.up, NULL)?;
        let swiglu = self.swiglu(step);
        // SAFETY: as promised to the pass.
        unsafe { swiglu.launch(self.on) }?;
        self.narrow(step.gated, swiglu.count as usize)?;
        self.project(&layout.down, count, step.gated.factor, step.out.wide, step.middle.x)
    }

    /// Adds the gradients of the layer's parameters but for its first norm and those of keys and values, given that of its
    /// output in `dout`. Adds to those of the chains' own keys, and makes or (`add`) adds to those of the text's. Leaves the
    /// gradient of the residual stream that goes by attention in `dout`, and that of the norm of what the step read in `dnormed`.
    pub fn layer_backward(&self, number: usize, add: bool) -> Done {
        let (work, layout, rows) = (self.work, self.layout, self.chains(number));
        let (step, count) = (&work.steps[number], rows.count);
        // From here on the wide side of `gated` is its gradient, as are `gate` and `up` behind the next step.
        self.project_backward(&layout.down, count, step.gated.factor, step.dout, step.gated.wide, 0.0)?;
        // SAFETY: as promised to the pass.
        unsafe { SwigluBackward(self.swiglu(step)).launch(self.on) }?;
        let normed = step.middle.normed.factor;
        self.project_backward(&layout.gate, count, normed, step.gate, work.dnormed, 0.0)?;
        self.project_backward(&layout.up, count, normed, step.up, work.dnormed, 1.0)?;
        // The stream goes round the MLP as well.
        self.norm_backward(Normed::of(&step.middle, count), &layout.post_norm, work.dnormed, step.dout, true)?;
        self.project_backward(&layout.o, count, step.attended.factor, step.dout, work.dattended, 0.0)?;
        self.attend(FlashPass::Queries, number, false)?;
        self.attend(FlashPass::Keys, number, add)?;
        if number > 0 {
            self.attend(FlashPass::Own, number, false)?;
        }
        self.heads_backward(&self.queries_of(step), rows, step.inputs.normed.factor, work.dq, work.dnormed, 0.0)
    }

    fn swiglu(&self, step: &Step) -> Swiglu {
        let count = (self.told.chains * self.geometry.intermediate_size) as u64;
        Swiglu { gate: step.gate, up: step.up, gated: step.gated.wide, count }
    }

    /// Attention of a step, or gradients; `add` to those of the text's keys.
    fn attend(&self, pass: FlashPass, number: usize, add: bool) -> Done {
        let (work, geometry, told) = (self.work, self.geometry, self.told);
        let (step, text) = (&work.steps[number], &work.text_keys);
        let own = work.steps.get(1).and_then(|step| step.own.as_ref()).map(|own| &own.keys);
        let own = |place: fn(&Keys) -> Address| own.map_or(NULL, place);
        let keys = pass == FlashPass::Keys;
        let arguments = Flash {
            tiles: if keys { work.inbox.key_tiles } else { work.inbox.query_tiles },
            q: step.q,
            k: text.k,
            v: text.v,
            own_k: own(|keys| keys.k),
            own_v: own(|keys| keys.v),
            out: step.attended.wide,
            lse: step.lse,
            dout: work.dattended,
            delta: work.delta,
            dq: work.dq,
            dk: text.dk,
            dv: text.dv,
            own_dk: own(|keys| keys.dk),
            own_dv: own(|keys| keys.dv),
            own_rows: work.rows as u64,
            scale: (geometry.head_dim as f64).sqrt().recip() as f32,
            heads: geometry.heads as i32,
            kv_heads: geometry.kv_heads as i32,
            window: geometry.windows[self.layout.after].unwrap_or(0).min(i32::MAX as usize) as i32,
            step: number as i32,
            add: add.into(),
        };
        // SAFETY: as promised to the pass.
        unsafe {
            flash(self.on, pass, if keys { told.key_tiles } else { told.query_tiles }, geometry.head_dim, &arguments)
        }
    }
}
