"""Names of baseline and control rows, as stored in result files."""

COPY = "copy last frame"
DETERMINISTIC, NONE = "deterministic", "none"  # the paper's lower and upper bounds
LABELLED = "labelled"  # conditioned on real actions
INFERRED = "inferred latents"
COPIES_FUTURE = "copies the future"  # a control
DECODER_ALONE = "decoder alone"  # decodes the true states
STATE, REAL_ACTIONS = "the state's components", "real actions"  # controls of scene
CHANGE = "the change's components"  # a control of distractors
# Planning baselines, which need no model.
TRUTH_HELD = "truth, held"
NO_ACTION = "no action"
MEAN_ACTION = "mean action"
RANDOM_ACTION = "random action"
NEAREST = "nearest training window"
POLICY = "policy"
FORMER = {"nearest neighbour": NEAREST}  # names in files that an older version wrote
BASELINES = TRUTH_HELD, NO_ACTION, MEAN_ACTION, RANDOM_ACTION, NEAREST, *FORMER, POLICY


def current(name):
    """Returns the name of a row that an older version may have named otherwise."""
    return FORMER.get(name, name)
