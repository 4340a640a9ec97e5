classdef groundTruthMedical
  properties
    DataSource
    LabelDefinitions
    LabelData
  end
  methods
    function self = groundTruthMedical(dataSource, labelDefinitions, labelData)
      isVolume = isa(dataSource, 'medical.labeler.loading.VolumeSource');
      if ~isVolume && ~isa(dataSource, 'medical.labeler.loading.ImageSource')
        error('stub:groundTruthMedical', 'the data source is of another class');
      end
      colours = labelDefinitions.LabelColor;
      if ~iscellstr(labelDefinitions.Name) || size(colours, 2) ~= 3 || any(colours(:) < 0 | colours(:) > 1)
        error('stub:groundTruthMedical', 'label definitions have names, and colours from 0 to 1');
      end
      if ~isinteger(labelDefinitions.PixelLabelID)
        error('stub:groundTruthMedical', 'pixel label IDs are whole numbers');
      end
      if ~iscellstr(labelData) || ~isequal(size(labelData), size(dataSource.Source))
        error('stub:groundTruthMedical', 'there is a label, or an empty text, for each data source');
      end
      for n = 1:numel(labelData)
        [~, ~, suffix] = fileparts(labelData{n});
        wanted = {'.mat', '.gz'};
        if ~isempty(labelData{n}) && ~(isfile(labelData{n}) && strcmp(suffix, wanted{isVolume + 1}))
          error('stub:groundTruthMedical', 'labels of volumes are NIfTI files, those of images MAT-files');
        end
      end
      self.DataSource = dataSource;
      self.LabelDefinitions = labelDefinitions;
      self.LabelData = labelData;
    end
  end
end
