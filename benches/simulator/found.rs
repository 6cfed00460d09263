//! The format of recorded lookups: one text a line.

/// What lookups find along one text: at each position of the model's own greedy text, what is proposed for it and what
/// follows.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Lookups {
    pub found: Vec<Option<Found>>,
}

/// Tokens of it that the text goes on with, tokens that match before the first one (before each further one, one more),
/// and what the tokens rest on.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Found(pub usize, pub usize, pub Vec<Run>);

/// So many tokens in a row that rest on so many places, which are so many percent of those found.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Run(pub usize, pub u8, pub usize);
