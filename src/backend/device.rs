//! Which device, by the name that users give it.

use std::str::FromStr;

/// Where passes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The best one there is.
    Auto,
    /// The processor.
    Cpu,
    /// A CUDA device by its number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Device::Auto),
            None if text == "cpu" => Ok(Device::Cpu),
            None if text == "cuda" => Ok(Device::Cuda(0)),
            Some(("cuda", number)) => {
                number.parse().map(Device::Cuda).map_err(|_| format!("device number {number:?} is not a whole number"))
            }
            _ => Err("expected auto, cpu, cuda or cuda:N".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert!("cuda:x".parse::<Device>().is_err() && "tpu".parse::<Device>().is_err());
    }
}
