"""Random changes of images, in batched tensor code on the device."""

from needsaug_lite.augment.batched import StandardAugmentation as StandardAugmentation
from needsaug_lite.augment.batched import cutout as cutout
from needsaug_lite.augment.batched import random_crop as random_crop
from needsaug_lite.augment.batched import random_flip as random_flip
from needsaug_lite.augment.operations import OPERATIONS as OPERATIONS
from needsaug_lite.augment.operations import Operation as Operation
from needsaug_lite.augment.policies import AugmentationPolicy as AugmentationPolicy
from needsaug_lite.augment.policies import PolicyDraws as PolicyDraws
from needsaug_lite.augment.published import published_policy as published_policy
from needsaug_lite.augment.strong import StrongAugmentation as StrongAugmentation
from needsaug_lite.augment.strong import StrongDraws as StrongDraws
from needsaug_lite.augment.strong import zero_gradient_share as zero_gradient_share
from needsaug_lite.augment.views import AutoAugmentCutout as AutoAugmentCutout
from needsaug_lite.augment.views import SimAugment as SimAugment
