import keras
from keras import ops

from tfgpt.models.gpt2.backbone import GPT2Backbone


@keras.saving.register_keras_serializable(package="tfgpt")
class GPT2CausalLM(keras.Model):
    """GPT-2 as a language model: the backbone and the output projection tied to its token embedding.
    """

    def __init__(self, backbone, dtype=None, **kwargs):
        super().__init__(dtype=dtype or backbone.dtype_policy, **kwargs)
        self.backbone = backbone
        self.build()

    def build(self, input_shape=None):
        self.built = True

    def call(self, inputs, training=None):
        return self.logits(self.backbone(inputs, training=training))

    def logits(self, hidden_states):
        # float32 whatever the policy: losses, samplers and parity compare logits of different runtimes.
        return ops.cast(self.backbone.token_embedding(hidden_states, reverse=True), "float32")

    def get_config(self):
        return {"name": self.name, "backbone": keras.saving.serialize_keras_object(self.backbone)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["backbone"]), name=config["name"])
