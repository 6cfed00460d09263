//! Tables as text.

/// One column.
pub struct Column {
    title: String,
    /// Set to the right.
    numeric: bool,
    cells: Vec<String>,
}

impl Column {
    /// Of words.
    pub fn words(title: &str, cells: impl IntoIterator<Item = String>) -> Self {
        Self { title: title.into(), numeric: false, cells: cells.into_iter().collect() }
    }

    /// Of numbers.
    pub fn numbers(title: &str, cells: impl IntoIterator<Item = String>) -> Self {
        Self { numeric: true, ..Self::words(title, cells) }
    }

    fn width(&self) -> usize {
        let all = self.cells.iter().chain([&self.title]);
        all.map(|cell| cell.chars().count()).max().unwrap_or(0)
    }

    fn pad(&self, cell: &str) -> String {
        let width = self.width();
        if self.numeric { format!(" {cell:>width$} |") } else { format!(" {cell:<width$} |") }
    }

    fn rule(&self) -> String {
        let dashes = "-".repeat(self.width() - usize::from(self.numeric));
        format!(" {dashes}{} |", if self.numeric { ":" } else { "" })
    }
}

/// Columns of the same length, in Markdown.
pub fn markdown(columns: &[Column]) -> String {
    let line = |cell: &dyn Fn(&Column) -> String| format!("|{}\n", columns.iter().map(cell).collect::<String>());
    let rows = columns.first().map_or(0, |column| column.cells.len());
    let mut text = line(&|column| column.pad(&column.title)) + &line(&Column::rule);
    (0..rows).for_each(|row| text += &line(&|column| column.pad(&column.cells[row])));
    text
}

/// Rows of fields, with quotes where they are needed.
pub fn csv(rows: &[Vec<String>]) -> String {
    let quoted = |field: &String| {
        if field.contains([',', '"', '\n']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.clone() }
    };
    rows.iter().map(|fields| fields.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cells() {
        let words = Column::words("set", ["a".into(), "–".into()]);
        let numbers = Column::numbers("x", ["1.00".into(), "20.00".into()]);
        let expected = "| set |     x |\n| --- | ----: |\n| a   |  1.00 |\n| –   | 20.00 |\n";
        assert_eq!(markdown(&[words, numbers]), expected);
    }

    #[test]
    fn fields_with_commas_and_quotes_are_quoted() {
        assert_eq!(csv(&[vec!["a,b".into(), "c\"d".into(), "e".into()]]), "\"a,b\",\"c\"\"d\",e\n");
    }
}
