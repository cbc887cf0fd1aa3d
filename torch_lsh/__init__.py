from .config import LSHConfig
from .nn import LSHLinear, SampledLogits
from .rehash import ExponentialBackoff, FixedInterval, RehashScheduler
from .sampling import ActiveSet
